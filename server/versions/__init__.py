"""The versions of each model: opened and proven, given a role, watched for in the repository, closed."""
