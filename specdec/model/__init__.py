"""What a model is: its architecture, the effort of its matrices, and a loaded one."""
