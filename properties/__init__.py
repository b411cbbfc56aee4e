"""The property suites: one law per file, generic over the kernel under test. Installed as `stabcheck.properties`."""
