"""What `mmesh ingest` reads: folders of pictures, and rows of JSON, CSV and Arrow files.

`reading` chooses the reader of a source. `json_rows`, `csv_rows` and `arrow_rows` give rows, which
`rows` makes candidates of by one meaning (`row_shape`, `attribute_values`, `image_cells`);
`folders` and `pictures` are about files of pictures. All keep `notes` of what they change or pass
over. What may enter: formats. What may not: the network and printing.
"""
