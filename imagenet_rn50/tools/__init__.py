"""Commands around training: doctor, estimate, prove-resume, demo, preview."""
