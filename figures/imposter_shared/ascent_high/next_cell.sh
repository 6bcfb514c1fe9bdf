python -m research +experiment=imposter_ascent_high name=ascent_high_next lr=0.0005 task.d_lr=0.0001 task.d_scale=0.6
