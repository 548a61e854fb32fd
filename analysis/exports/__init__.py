"""Taking results elsewhere: masks for other libraries, tables, pages and pictures."""
