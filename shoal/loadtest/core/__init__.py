"""When to send, what came of it, where the knee is: values in, values out."""
