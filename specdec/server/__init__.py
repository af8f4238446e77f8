"""HTTP over a batch of answers: `specdec serve`. How answers come about is in `specdec.engine`."""
