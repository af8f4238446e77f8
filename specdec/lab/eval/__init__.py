"""What a lower effort costs in quality: `run.evaluate` is the whole of it.

`passages` compares next-token distributions and hidden states on a text, `questions` asks the questions of the original
Effort, `humaneval` has programs written and tests them in the `sandbox`; `answers` keeps what is done, so that an
interrupted evaluation goes on; `report` says it in a table, `plots` in pictures.
"""
