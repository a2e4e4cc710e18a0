"""The rendered manifests, and what NetworkPolicies mean."""
