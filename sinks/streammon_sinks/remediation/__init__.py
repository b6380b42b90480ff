"""Remediation, the part that acts: what is due is done (`execute`), by a webhook, at Kubernetes or on Kafka."""
