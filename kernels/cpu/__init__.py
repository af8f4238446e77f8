"""The native CPU runtime: C++ sources, and (where it was built) the extension module `_native`."""
