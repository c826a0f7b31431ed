//! DRBD 8.4 on-disk metadata (format v08): superblock, activity log and bitmap as values.
