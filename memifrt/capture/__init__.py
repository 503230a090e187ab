"""Read and write pcap and pcapng files, filter packets, summarize packets in one line."""
