python -m research +experiment=imposter_ascent name=ascent_next lr=5e-06 task.d_lr=4e-05 task.d_scale=0.03
