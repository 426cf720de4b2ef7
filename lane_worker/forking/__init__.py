"""The fork server and the pipeline hosts: start, messages, deadlines, kill, reap."""
