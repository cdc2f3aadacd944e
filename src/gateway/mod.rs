//! The HTTPS face: Kubernetes' REST API over the registry.
