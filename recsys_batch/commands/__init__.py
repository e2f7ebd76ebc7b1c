"""The commands of ``recsys-batch``, by the people who type them; heavy imports happen inside each command."""
