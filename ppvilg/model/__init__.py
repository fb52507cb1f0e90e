"""The transformer: what it is made of, who sees whom, and how it decodes. Knows nothing of files, devices and processes."""
