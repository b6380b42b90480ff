"""Remediation, the part that acts: what is due is done (`execute`), by webhook, program, Kubernetes, Kafka, MLflow."""
