"""The local socket: HTTP in OpenAI's shape for the applications of this box. Importing it imports nothing."""
