"""Messages to domain types and arrays and back, checked on receipt; gRPC servers."""
