"""What commands print: tables, rows of JSON, progress bars, pages of HTML."""
