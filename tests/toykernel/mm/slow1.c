int slow1(void)
{
	return 1;
}
