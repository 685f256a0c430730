#ifndef TOY_MM_H
#define TOY_MM_H
#define PAGE_SIZE 4096
int handle_fault(int address);
int map(int address);
#endif
