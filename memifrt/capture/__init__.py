"""Captures: pcap and pcapng files, filters, one-line summaries."""
