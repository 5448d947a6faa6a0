"""What looks at a machine or predicts: doctor, preflight, planner, measurements, bench."""
