//! The DRBD configuration language: text to checked configuration and back.
