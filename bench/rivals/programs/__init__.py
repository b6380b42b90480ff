"""The contestants, each as one of its users would write it. Called with: BOOTSTRAP SOURCE TARGET."""
