"""What an e-mail sender reads: a few items per user, none twice, of a whole night. Reads the tables without a JVM."""
