"""What tests are built from: builders, fakes of clocks and faults, programs that tests start. No tests."""
