"""Checkpoints that are not on this machine, read by range: nothing is downloaded as a whole.

address      where such a file is, told from a path and shown without secrets
source       positioned reads of one object, tried again when the connection fails
web          of http:// and https://
connections  to web servers, kept open
hub          of models on the Hugging Face Hub, by huggingface_hub
filesystems  of every other address (s3://, gs://, memory://, ...), by fsspec
extra        what is said where a package for one of them is not installed
push         uploading to the hub
ahead        reading ahead of a reader, within a fixed amount of memory
opening      the files of a checkpoint elsewhere, ready to be read
"""
