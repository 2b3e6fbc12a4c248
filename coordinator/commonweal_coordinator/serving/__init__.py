"""What the coordinator answers: gRPC calls, the exchange of adapter files, the web pages."""
