"""Long runs that try to break the native code; `tools/torture-native` starts them."""
