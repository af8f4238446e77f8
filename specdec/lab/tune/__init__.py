"""Tuning drafts to a model and a machine: how much effort each matrix needs, and what it costs here.

`run` is the whole of it; `sensitivity` measures what each matrix tolerates, `allocation` shares out the effort, `costs`
takes the times, `trial` tries the candidates on the model's own text, `profile` is what is kept.
"""
