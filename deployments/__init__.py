"""gsec as a service: deployments of the flows, and the processes that run them."""
