"""From files and a manifest to the images of a data set: read, cached, cleaned, labelled, split."""
