"""The provider `kubernetes`: lanes are the replicas of Deployments, and the cluster says how each fares."""
