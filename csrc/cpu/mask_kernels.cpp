// Compiled once per instruction set (see CMakeLists.txt).
