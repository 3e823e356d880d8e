"""What this process is, what it runs among and on: job, device, versions, checkout; and how long its steps take."""
