"""An OpenAI-compatible server over one model."""
