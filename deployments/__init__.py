"""What runs gsec as a service: deployments of the flows, and the processes around them."""
