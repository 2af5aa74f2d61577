"""Checkpoint files: one reader and one way to write. Importing it does not load torch.

dtypes      the names of element types, their sizes, and what they are in torch
header      the header of a safetensors file, parsed and built
regular     opening files that others made, and reading their JSON
index       the index of a sharded checkpoint
shards      the files that a checkpoint here consists of
checkpoint  reading: one file, a sharded index or a folder of shards
remote      the same of checkpoints that are not on this machine
joined      a tensor put together from the rows of others, where it is read
stamp       what tells a file from a changed one
target      where a file may be written
atomic      a file that has its name only when it is whole
save        writing tensors that are all there, in one go
writer      writing a file as a stream, resumed after an interruption
part        the unfinished file of that
journal     the lock on it, and which of its steps are whole
digest      a cheap digest of what was written
memory      keeping this process's memory near what it uses
"""
