"""The same coordinator, messages and trainers under a virtual clock: training is real, time not."""
