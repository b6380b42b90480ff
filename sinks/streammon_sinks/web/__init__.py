"""The page of ``streammon up``: what models, machines and alerts are doing, as windows close."""
