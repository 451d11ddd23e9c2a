from planescope.cli import main

main()
