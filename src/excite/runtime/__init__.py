"""What this process is and runs among: the job that it belongs to, the checkout around it. Imports nothing heavy."""
