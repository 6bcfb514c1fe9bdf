python -m research +experiment=imposter_ascent name=ascent_next lr=3e-05 task.d_lr=6e-05 task.d_scale=0.2
