"""The two stages as Prefect flows, their deployments, and the server that needs no setting up."""
