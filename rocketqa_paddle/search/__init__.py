"""Search: a corpus goes in, ranked passages come out."""
