"""The gRPC messages and stubs, generated from ``commonweal.proto``. The one place of this room that needs gRPC."""
