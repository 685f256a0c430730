int open_file(void)
{
	return 3;
}
