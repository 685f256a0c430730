void start_kernel(void)
{
	for (;;)
		;
}
