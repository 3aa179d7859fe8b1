"""What `cluster.submit` is made of: the package that goes to the cluster, and the job that runs it."""
